"""What Taba is made of besides its own code: a bill of materials, and what is known to be wrong with it."""
