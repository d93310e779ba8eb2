"""The evaluation protocol of generators and of sets of images."""
