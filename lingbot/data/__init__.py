"""Worlds and footage: BlockWorld, its clips, and the streams of controls that drive a session."""
