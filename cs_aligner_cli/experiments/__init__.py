"""Many runs as one experiment: sweeps, and the comparison of what they measured."""
