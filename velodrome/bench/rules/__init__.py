"""Rules of a race: which recipes an algorithm enters with, one ruleset per file."""
