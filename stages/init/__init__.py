"""The stage `init`: writing a configuration that fits what was found."""
