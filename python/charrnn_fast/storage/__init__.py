"""Files: reading and writing them, and the checkpoint.

checkpoint     one file of tensors, a configuration and a checksum
configuration  every key of that configuration
schema         schemas of JSON from files
atomic_file    atomic writing of all files
file_array     arrays that stay in a file
input_files    input files other than training text
streams        the standard streams
"""
