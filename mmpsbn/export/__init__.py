from mmpsbn.export.onnx_file import Exported, export_onnx

__all__ = ['Exported', 'export_onnx']
