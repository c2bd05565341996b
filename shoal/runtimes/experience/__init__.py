"""How experience is gathered: rollouts in a compiled program, segments of one stream, several simulators as one."""
