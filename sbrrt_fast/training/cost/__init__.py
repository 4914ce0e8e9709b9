"""The cost of a round: its floor and where its time goes."""
