"""Collectives between ranks of one node through shared memory.

gloo sends each collective through sockets, at about 0.4 ms per call on loopback. If the model
computes a layer in less time, ranks mostly wait. Here, ranks copy rows into memory that all of them
map, and wait for each other's sequence numbers, spinning briefly and then sleeping in the kernel.

=============  ====================================================================
module         purpose
=============  ====================================================================
futex          sleep until a word of shared memory changes
segment        anonymous memory shared by the processes of a group
arrivals       publish a rank's sequence number, and wait for the other ranks
buffers        layout of tensors in the memory
exchange       gather, reduce-scatter and sum
support        check for the required kernel features
time_slice     let a rank run as soon as the others have arrived
agreement      all ranks of a group decide together whether to use it
groups         the exchanges of this process, for the collectives and for vLLM
=============  ====================================================================

Only x86-64 is supported, because the order of loads and stores relies on total store order. Results
are bit-identical to those of the collectives over gloo in
:mod:`serving.engine.cpu_plugin.collectives`.
"""
