"""The selective scan: definition, CPU kernel, GPU kernel, and the public functions over them."""
