"""The stages that make the bundled pipeline and its hypernetworks; `lab.demo.train` runs them."""
