"""From a calibrated model to one ONNX file that runs as integers, at one width or at all of them.

freeze the numbers of every width -> record the network once, its layers and quantizers as symbols -> put integers in
their places, once a width -> one file. Imports `ptmq.network` and what is below; onnx and onnxruntime are an extra.
"""
