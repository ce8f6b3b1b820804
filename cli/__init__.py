"""What a person types: parse, delegate, show."""
