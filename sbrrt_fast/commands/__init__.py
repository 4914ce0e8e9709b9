"""The commands of ``sbrrt-fast``, a module each with ``main(argv)``."""
