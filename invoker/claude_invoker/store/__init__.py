"""Where files of runs are kept outside of the machine that ran them."""
