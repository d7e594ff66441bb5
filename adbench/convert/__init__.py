"""Turning files of other projects into ones that adbench reads. Files of strangers are data: nothing in them is executed."""
