"""Compare generated with reference trajectories: ``metrics``, ``kinetics``, ``plots``."""
