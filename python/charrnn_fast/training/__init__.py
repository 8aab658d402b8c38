"""Training a language model on a corpus: the loop, callbacks, schedules, logs.

trainer     `Trainer`: the loop over epochs, evaluations and checkpoints
update      one update of the weights on a chunk
averaging   the average of the weights over updates
distributed processes that torchrun has started
resume      a training in a checkpoint, and how it is resumed
interrupts  Ctrl-C and similar signals, deferred until an update is done
callbacks   the base of callbacks, and their events
schedules   learning-rate schedules
progress    the progress display
log         logs of JSON lines and for TensorBoard
plot        plots from logs
clock       time and speed
"""
