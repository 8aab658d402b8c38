"""Text as ids: vocabularies, and corpora of any size.

vocabulary  symbols, characters or bytes, and their ids
files       which files a text is made of, and how they are read
corpus      a text's ids, split into training and validation
spool       how files become ids in one pass
chunks      the pieces of a text that training reads
documents   chunks in which documents begin
demo        the text and the bound of the demonstration
"""
