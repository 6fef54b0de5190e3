"""The parts of the one modelling file of an exported folder; ``sharing.one_file`` joins them."""
