"""What runs by itself: profiles, their steps, conditions and messages, and the units that start them."""
