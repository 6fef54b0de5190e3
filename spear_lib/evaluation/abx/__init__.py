"""ABX discrimination of phones: which of two phones does a third one sound like (spec evaluation §5.1)."""
