"""Every knob a researcher turns, one YAML a choice; installed as `lingbot.conf`."""
