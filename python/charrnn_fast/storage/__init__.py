"""Files: how all of them are read and written, and the checkpoint.

checkpoint     one file of tensors, a configuration and a checksum
configuration  every key of that configuration
schema         declarations of JSON from files
atomic_file    how all files are written
file_array     arrays that stay in a file
input_files    what is read, besides texts
streams        the standard streams
"""
