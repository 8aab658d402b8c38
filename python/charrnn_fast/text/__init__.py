"""Text as ids: vocabularies, and corpora of any size.

vocabulary  symbols, characters or bytes, and their ids
files       which files a text is made of, and how they are read
corpus      a text's ids, split into training and validation
documents   chunks in which documents begin
demo        the text and the bound of the demonstration
"""
