"""TinyWorld: a small world of people, towns and things; facts about it, and stories in it."""
