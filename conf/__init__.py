"""Every knob a researcher turns, one YAML a choice; installed as `lingbot.conf`.

Importing it makes the schemas and resolvers that the YAML files use known to Hydra, so that
`hydra.initialize_config_module("lingbot.conf")` works in a notebook as it does on the command line.
"""

from lingbot.conf.resolvers import register_resolvers
from lingbot.conf.schemas import register_schemas

register_resolvers()
register_schemas()
