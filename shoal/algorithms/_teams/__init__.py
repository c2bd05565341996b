"""Networks as teams of units that learn locally: formulas, records, acting and learning of `map_propagation`."""
