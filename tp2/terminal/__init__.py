"""What commands show to people, and complete for them."""
