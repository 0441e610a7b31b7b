"""An agent's folder in, its place on the Hub out, and back: what a release holds, the record, the card, the Space."""
