"""What is trained: small readable networks, one file each."""
