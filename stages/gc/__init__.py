"""The stage `gc`: finding and removing what nothing names any more."""
