"""From a Topology to residue tokens, from atoms to conformations and back."""
