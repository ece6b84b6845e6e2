"""The command `python -m s4nd.export`: an image model to ONNX (`s4nd.interop.onnx`)."""

import sys

from s4nd.cli import export_help, run
from s4nd.interop.frozen import freeze
from s4nd.interop.onnx import OPSET, TOLERANCE, ExportError, export_onnx, main, relative_error

__all__ = ['OPSET', 'TOLERANCE', 'ExportError', 'export_onnx', 'freeze', 'main', 'relative_error']

if __name__ == '__main__':
    sys.exit(run(main, sys.argv[1:], export_help))
