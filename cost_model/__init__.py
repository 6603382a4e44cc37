"""What things cost: plain numbers in, seconds and bytes out. Imports nothing of the floors above, and no JAX.

`topology.parse_topology` names a machine, `mesh.logical_mesh` lays axes on it, `collectives` and `compute` price single
operations there, `simulate` puts them on a timeline.
"""
