"""What files, runs, programs and machines are, told in lines for people."""
