"""Stages 3 to 6: teacher tokens planned, made, stored, checked, attached to cuts and analysed."""
