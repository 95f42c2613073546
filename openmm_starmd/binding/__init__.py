"""How a learned integrator lives in OpenMM: its state in checkpoints and States, its way to System and Context."""
