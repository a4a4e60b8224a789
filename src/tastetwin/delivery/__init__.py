"""deliver: publish the lists, and answer what people ask of the published run."""
