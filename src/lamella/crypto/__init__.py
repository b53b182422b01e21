"""Keys, ids and sealing: values in, values out; no I/O besides the kernel's random numbers.

Words: *derive* a key from the data root, *seal* a body into a blob, *open* it again. Algorithms and inputs are those
of FORMAT 3-5.
"""
