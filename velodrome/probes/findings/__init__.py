"""What readings mean, in words with their numbers: one file for each family of sicknesses."""
