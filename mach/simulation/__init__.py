"""A simulated store: products and a log of query → product clicks, from a seed, of any size.

For trying things out and for measuring at sizes that no open data set has. Products have a
brand, a line, a type and attributes; popularity is long-tailed; queries name some of a
product's words, with synonyms and misspellings.
"""

from mach.simulation.store import SimulatedStore, simulate_store

__all__ = ["SimulatedStore", "simulate_store"]
