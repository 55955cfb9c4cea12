"""What arXiv:2001.11216 says of collapsed filters, tried on digits and CIFAR-10."""
