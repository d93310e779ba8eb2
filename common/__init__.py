"""What two or more of the packages share; imports none of them."""
