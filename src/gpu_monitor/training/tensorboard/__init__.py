# SPDX-License-Identifier: MIT
"""TensorBoard's event files, read without TensorFlow and protobuf, and made experiments."""
