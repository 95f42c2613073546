"""Life of a learned integrator in OpenMM: state in checkpoints and States, System and Context, checks, segments."""
