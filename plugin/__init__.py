"""What faces OBS and the person at the controls."""
