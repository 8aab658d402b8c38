"""Training a language model on a corpus, and what watches it.

trainer     `Trainer`: the loop over epochs, evaluations and checkpoints
update      one update of the weights by a chunk
resume      what a checkpoint holds of a training
interrupts  Ctrl-C and its like, put off until an update is done
callbacks   what may watch a training, and what it is told
schedules   how the learning rate changes
progress    what a person sees of a training
log         logs of JSON lines and for TensorBoard
plot        pictures from logs
clock       time and speed
"""
