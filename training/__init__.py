"""How the embedded model's weights are made; nothing here runs in the live program."""
