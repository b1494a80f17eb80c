"""The study: does aligning explanations help, and is it honest?"""
