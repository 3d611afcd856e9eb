"""From a raw frame to a stylised one, at a steady rate."""
