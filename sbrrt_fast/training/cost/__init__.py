"""What a round costs: its floor and where its time goes."""
